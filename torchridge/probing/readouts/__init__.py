"""From moments or kept rows of one layer to a linear readout."""
