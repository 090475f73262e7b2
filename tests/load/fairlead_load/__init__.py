"""A load test that sends real flights through the gateway and judges what came back."""
