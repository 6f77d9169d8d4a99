"""`rerank serve`: one server that answers the clients people already have. What comes in goes one way through it:

    guard (key, size, request id) -> bodies (bytes to JSON) -> dialects (JSON to a Question) -> desk (queue, turns)
    -> dialects (an Answer to JSON)

Loading models is `shelf`, what is allowed `limits`, what is counted `metrics`, and `server` listens.
"""
