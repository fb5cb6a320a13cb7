"""Parameter groups, schedules and operations by which optimizers decay weights."""
