"""Real processes under real faults: proxy, load, history, and the judge that reads it offline."""
