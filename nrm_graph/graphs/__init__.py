"""NetworkX graphs of relevance, and the file formats that they are written to."""
