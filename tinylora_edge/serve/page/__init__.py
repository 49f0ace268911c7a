"""The page of a server, on which one person sees what a vector does.

* `files` are what a browser loads: HTML, CSS and JavaScript modules, which lie in this folder.
* `visitor` is the person whom the page is for, and `editor` makes frames of what he sets and loads.
* `picture` draws a frame as a QR code.
"""
