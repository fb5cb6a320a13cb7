"""Logistic problems: the loss, models of its Hessian, and the ways down."""
