"""Who is one person, and what is merged of them."""
