"""One relay in several processes: workers that forward, and the parent in front of them that speaks for all of them."""
