"""What is asked, planned, looked up and told of an export."""
