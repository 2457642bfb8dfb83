"""A small shop for document templates whose plans decide what a studio may do."""
