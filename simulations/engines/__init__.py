"""Ways to run one ServerApp and many ClientApps on one machine."""
