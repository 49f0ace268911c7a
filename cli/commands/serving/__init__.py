"""The commands of a server and of its store of users' vectors: `serve`, and the group `vectors`."""
