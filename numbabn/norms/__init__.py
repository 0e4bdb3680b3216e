"""What users call: one file per norm, its functions and its layer together; moments, and recalibration."""
