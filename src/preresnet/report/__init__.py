"""The page about runs and studies: what it tells, its pictures, and how it is put together."""
