"""An export behind protocols that robots speak: openpi's websocket, praxis-remote's gRPC."""
