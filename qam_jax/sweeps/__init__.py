"""Many runs: studies name them, jobs describe them, and a backend executes them."""
