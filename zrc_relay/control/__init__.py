"""What people and programs see of a running relay, over HTTP: health, metrics, administration (R7, R10)."""
