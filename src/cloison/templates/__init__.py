"""How a template's image, its kernel and the guest agent's package are made. Nothing here needs root."""
