"""The local web page on which people look at a store, and where a click conditions the measure."""
