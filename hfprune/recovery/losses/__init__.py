"""The parts of the recovery loss, one file each."""
