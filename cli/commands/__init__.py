"""The commands, a file each, in folders by what they are about."""
