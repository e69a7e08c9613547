"""The pictures of the report. Each function takes what it draws and a width in pixels and gives one SVG element, or
None if there is nothing to draw; the page asks for a wide and a narrow one.
"""
