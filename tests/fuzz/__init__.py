"""What strangers can send, made up by machines: targets, seeds, and the two engines that feed the one with the other."""
