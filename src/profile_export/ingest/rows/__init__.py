"""What rows and columns of an upload are checked for and become."""
