"""The types of fields, where they are learned from, and XDM."""
