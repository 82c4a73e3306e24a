"""What a run tests: a difference of arms, or the diagonal of a table of arms against its rest.

Each kind of contrast says what a row of it must be, what it is in a lineage, and how it is tested;
`kinds` has the table of them.
"""
