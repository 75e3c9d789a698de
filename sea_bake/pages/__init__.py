"""Everything for people's eyes: HTML and Markdown from templates, pictures, an edit in words."""
