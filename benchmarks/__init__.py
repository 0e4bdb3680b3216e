"""Speed, accuracy and first use of numbabn, measured against its peers on one machine."""
