"""How amortis is started, watched, compared and used; a room for each concern."""
