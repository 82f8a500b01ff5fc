"""The scoring service: Perspective's wire protocol, and the HTTP application that speaks it."""
