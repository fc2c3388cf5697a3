"""What a run tells its reader: the report with its pictures, the matrix as a table, and the card of an adapter.

Nothing here needs torch, and matplotlib and Jinja are imported only by what draws and renders.
"""

from hf_lifealign.report.card import write_adapter_card
from hf_lifealign.report.policy_card import write_policy_card
from hf_lifealign.report.table import matrix_table
from hf_lifealign.report.writer import write_matrix_picture, write_report

__all__ = ["matrix_table", "write_adapter_card", "write_matrix_picture", "write_policy_card", "write_report"]
