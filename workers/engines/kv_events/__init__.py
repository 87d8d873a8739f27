"""What engine servers tell of their prefix caches, in the words of our own block chain."""
