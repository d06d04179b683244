"""Generated from protos/profile_export/v1 by `make proto`. Never edited by hand."""
