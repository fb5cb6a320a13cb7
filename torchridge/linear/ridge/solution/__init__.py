"""What a ridge problem gives: weights or their dual form, what is known about them, and how they predict."""
