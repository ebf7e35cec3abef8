"""What saved models say of texts and images: what ``itrd predict`` prints."""
