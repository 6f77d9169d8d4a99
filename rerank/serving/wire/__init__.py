"""From the bytes of a request to a `Question`, and from an `Answer` to the JSON of each dialect; pure.

bodies (bytes -> JSON object) -> schemas, of fields (what each dialect may say) -> dialects (-> Question)
answers (Answer -> JSON)                                          openapi (all of it as a document)
"""
