"""How a model server works: fetch, predict, answer. Knows neither Redis nor Keras."""
