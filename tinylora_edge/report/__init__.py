"""Reports: HTML that needs nothing else, for a browser or a notebook.

`markup` makes elements, `scores`, `changes`, `values` and `curve` draw, and `page` puts a report together.
All of it is well-formed XML too, and whatever it quotes is escaped. Colours come from classes, which `style`
names once for light and dark.
"""
