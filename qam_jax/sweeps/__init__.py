"""Many runs at once: which they are (studies), what each is (jobs), and what executes them."""
