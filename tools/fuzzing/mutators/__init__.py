"""How a valid input becomes a hostile one, a file a form: past the outer checks where the form has any."""
