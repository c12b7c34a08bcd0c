"""Networks that only this domain needs: node classifiers beside the sheaf model, and backbones for signals on graphs."""
