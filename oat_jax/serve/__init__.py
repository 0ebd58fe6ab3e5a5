"""An export behind the protocols that robot people speak: openpi's websocket, praxis-remote's gRPC."""
