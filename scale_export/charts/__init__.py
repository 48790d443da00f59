"""Pictures for people: heat maps, accuracy, errors."""
