"""How a picture is fitted into the input of a model: where it goes, and by which filter."""
