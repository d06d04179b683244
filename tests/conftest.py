from hypothesis import settings

# The same examples on every run: a red build means the change, not the dice. No deadline: machines differ.
settings.register_profile("ci", derandomize=True, deadline=None)
# For looking further by hand: pytest --hypothesis-profile=search
settings.register_profile("search", deadline=None, max_examples=2_000)
settings.load_profile("ci")
