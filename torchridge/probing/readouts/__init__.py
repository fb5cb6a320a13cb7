"""Linear readouts of the features of one layer, and the table of them."""
