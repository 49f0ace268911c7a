"""The commands about bundles: they make, join, list and read them."""
