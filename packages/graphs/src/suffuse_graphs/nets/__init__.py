"""Networks that only this domain needs: node classifiers by name, and the backbone for signals on graphs."""
