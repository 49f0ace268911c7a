"""The commands about the way to a device: keys, carriers, and a web server."""
