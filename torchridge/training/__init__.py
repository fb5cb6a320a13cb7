"""What a training loop uses: regularizers, penalized layers, weight-decay groups, monitors."""
