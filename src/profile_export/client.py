"""A thin client: imports only the contract and grpc."""
